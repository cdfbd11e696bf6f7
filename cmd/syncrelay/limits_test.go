package main

import (
	"reflect"
	"testing"

	"github.com/syncrelay/syncrelay/configs"
	"github.com/syncrelay/syncrelay/stream"
)

func TestEveryLimitOfTheSettingsReachesTheServer(t *testing.T) {
	t.Parallel()
	var given configs.Limits
	fields := reflect.ValueOf(&given).Elem()
	for i := range fields.NumField() {
		switch f := fields.Field(i); f.Kind() {
		case reflect.Float64:
			f.SetFloat(float64(i + 1))
		default:
			f.SetInt(int64(i + 1))
		}
	}
	got := reflect.ValueOf(streamLimits(given))
	if got.NumField() != fields.NumField() {
		t.Errorf("the settings have %d limits and the server %d", fields.NumField(), got.NumField())
	}
	for i := range fields.NumField() {
		name := fields.Type().Field(i).Name
		if f := got.FieldByName(name); !f.IsValid() || !f.Equal(fields.Field(i)) {
			t.Errorf("%s is handed over as %v, want %v", name, f, fields.Field(i))
		}
	}
	if none := streamLimits(configs.Limits{}); none.Connections != stream.NoLimit || none.MessageRate != stream.NoLimit {
		t.Errorf("0 is not handed over as no limit: %+v", none)
	}
}
