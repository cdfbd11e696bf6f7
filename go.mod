module github.com/syncrelay/syncrelay

go 1.26
