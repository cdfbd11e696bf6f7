package outbox

import (
	"testing"

	"github.com/jackc/pgx/v5"
)

// TestALockThatHasJustBecomeFreeIsNotAnothers: between asking for the lock and asking who
// has it, this relay's own earlier session may end. Its clients would be sent away for
// nothing.
func TestALockThatHasJustBecomeFreeIsNotAnothers(t *testing.T) {
	t.Parallel()
	url, admin := migrated(t)
	j, err := NewJournal(Options{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	unowned := func(reason string) { t.Errorf("it stands by: %s", reason) }
	if free, err := j.waitForLock(t.Context(), admin, unowned); err != nil || !free {
		t.Fatalf("the lock that nobody has was not taken: %v", err)
	}
	other, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer closeConn(other)
	// The owner ends as soon as somebody waits for it.
	told := false
	free, err := j.waitForLock(t.Context(), other, func(string) { told = true; closeConn(admin) })
	if err != nil || !free || !told {
		t.Fatalf("of a lock that another has: told to stand by: %t, got it in the end: %t, %v", told, free, err)
	}
}
