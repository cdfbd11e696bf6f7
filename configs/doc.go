// Package configs is the settings of syncrelay: one struct, [Settings], loaded
// by [Load] from a YAML file and the environment, and checked. keys.go is the
// table of all keys: to add a setting, add a field and a row there, and a line
// to syncrelay.yaml, the commented reference.
//
// The folder also holds what runs around the relay: see README.md.
package configs
