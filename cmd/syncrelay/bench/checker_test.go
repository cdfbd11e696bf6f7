package bench

import (
	"strings"
	"testing"
)

func TestCheckerFindsWhatIsWrongWithAStream(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		consecutive bool
		from        int64
		ids         []int64
		want        int64  // how many events are meant for the client
		finding     string // empty for a stream that is right
	}{
		"all of them":               {consecutive: true, ids: []int64{7, 8, 9}, want: 3},
		"all, resumed":              {consecutive: true, from: 6, ids: []int64{7, 8, 9}, want: 3},
		"some of them":              {ids: []int64{7, 9, 20}, want: 3},
		"lost in the middle":        {consecutive: true, ids: []int64{7, 9}, want: 3, finding: "1 events were lost between 7 and 9"},
		"lost at the beginning":     {consecutive: true, from: 6, ids: []int64{8}, want: 2, finding: "1 events were lost between 6 and 8"},
		"lost at the end":           {ids: []int64{7, 8}, want: 3, finding: "1 of 3 events were lost"},
		"repeated":                  {ids: []int64{7, 7}, want: 1, finding: "event 7 was sent twice"},
		"repeated after a resume":   {from: 7, ids: []int64{7}, want: 0, finding: "event 7 was sent twice"},
		"repeated later":            {ids: []int64{7, 8, 7}, want: 2, finding: "repeated, or out of order"},
		"out of order":              {ids: []int64{8, 7}, want: 2, finding: "event 7 came after event 8"},
		"more than there should be": {ids: []int64{7, 8}, want: 1, finding: "1 events came that were not meant"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := checker{consecutive: c.consecutive}
			if c.from > 0 {
				k.from(c.from)
			}
			var err error
			for _, id := range c.ids {
				if err = k.event(id); err != nil {
					break
				}
			}
			if err == nil {
				err = k.complete(c.want)
			}
			switch {
			case c.finding == "" && err != nil:
				t.Errorf("it found %v in a stream that is right", err)
			case c.finding != "" && (err == nil || !strings.Contains(err.Error(), c.finding)):
				t.Errorf("it found %v, want %q", err, c.finding)
			}
		})
	}
}
