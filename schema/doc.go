// Package schema is the SQL of syncrelay and the Go that applies it: the outbox
// table or the adoption of an existing one, the writer functions, the roles, the
// publication, the relay's own tables, and the demo grading tables.
//
// [Migrate] is where to start reading. What is made once is a numbered file in
// migrations/, applied by goose. What must hold after each run, whatever
// somebody has changed meanwhile, is converge.sql: roles, grants, publication
// and partitions. README.md is for those who write rows.
package schema
