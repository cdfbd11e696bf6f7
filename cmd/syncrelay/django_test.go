package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/syncrelay/syncrelay/outbox/localpg/pgtest"
)

const djangoGuide = "../../schema/django.md"

// djangoPython finds a Python that has what the guide needs.
func djangoPython(t testing.TB) string {
	t.Helper()
	for _, python := range []string{"python3", "/usr/bin/python3"} {
		if exec.Command(python, "-c", "import django, psycopg2, rest_framework_simplejwt").Run() == nil {
			return python
		}
	}
	t.Skip("there is no Python with Django: apt-get install python3-django python3-psycopg2 python3-djangorestframework-simplejwt")
	return ""
}

// djangoSettings are what the guide takes for granted.
const djangoSettings = `
import os
SECRET_KEY = "x"
SYNCRELAY_SECRET = os.environ["SECRET"]
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "rest_framework", "rest_framework_simplejwt", "grading"]
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1", "PORT": os.environ["PORT"], "NAME": os.environ["NAME"], "USER": "postgres"}}
USE_TZ = True
`

// djangoManage runs what a developer types, and a script of ours.
const djangoManage = `
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
import django
django.setup()
if sys.argv[1] == "do":
    exec(sys.argv[2])
else:
    from django.core.management import execute_from_command_line
    execute_from_command_line(sys.argv)
`

// application is the guide's, made of its blocks.
type application struct {
	t           *testing.T
	python, dir string
	environ     []string
}

func newApplication(t *testing.T, databaseURL string) *application {
	t.Helper()
	a := &application{t: t, python: djangoPython(t), dir: t.TempDir()}
	files := map[string]string{"settings.py": djangoSettings, "manage.py": djangoManage, "grading/__init__.py": ""}
	for _, block := range examples(t, djangoGuide, "", "python") {
		name, _, _ := strings.Cut(strings.TrimPrefix(block, "# "), "\n")
		files[name] += block
	}
	if len(files) != 7 {
		t.Fatalf("the guide's files are %d", len(files))
	}
	files["grading/inline.py"] = examples(t, "../../schema/README.md", "Django", "python")[0]
	for name, text := range files {
		path := filepath.Join(a.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	u := mustParse(t, databaseURL)
	a.environ = []string{"PATH=" + os.Getenv("PATH"), "SECRET=" + testSecret, "PORT=" + u.Port(), "NAME=" + strings.TrimPrefix(u.Path, "/"), "PYTHONDONTWRITEBYTECODE=1"}
	return a
}

// manage runs manage.py and returns what it prints.
func (a *application) manage(args ...string) string {
	a.t.Helper()
	cmd := exec.Command(a.python, append([]string{"manage.py"}, args...)...)
	cmd.Dir, cmd.Env = a.dir, a.environ
	out, err := cmd.CombinedOutput()
	if err != nil {
		a.t.Fatalf("manage.py %s: %v: %s", args[0], err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestDjangoGuideWorksAsItIsWritten(t *testing.T) {
	t.Parallel()
	databaseURL := pgtest.Database(t)
	app := newApplication(t, databaseURL)
	// As it was before: the old table, with a row that was sent and one that was not.
	app.manage("makemigrations", "grading")
	app.manage("migrate")
	app.manage("do", `
from grading.models import *
from django.contrib.auth.models import User
User.objects.create_user("sgt.harper", password="x", is_staff=True)
User.objects.create_user("amara", password="x")
Cadet.objects.create(name="Amara Okafor")
SyncEvent.objects.create(event_type="old_and_sent", processed=True)
SyncEvent.objects.create(event_type="old_and_unsent")`)

	// Step 1.
	p := newDatabaseAt(t, databaseURL)
	statements := examples(t, djangoGuide, "1. The table", "sql")
	p.exec(`CREATE ROLE django_writer; GRANT django_writer TO current_user`)
	t.Cleanup(func() { // a role is the whole server's
		if _, err := p.pool.Exec(context.Background(), `DROP ROLE django_writer`); err != nil {
			t.Error(err)
		}
	})
	p.exec(strings.Replace(statements[0], "current_user", "django_writer", 1))
	p.exec(statements[1])
	p.start()

	// Steps 2 and 3.
	token := func(user string) string {
		return app.manage("do", fmt.Sprintf(`
from django.contrib.auth.models import User
from grading.tokens import TokenSerializer
print(TokenSerializer.get_token(User.objects.get(username=%q)).access_token)`, user))
	}
	staff := follow(t, overWebSocket, p.address(), token("sgt.harper"), 0)
	user := follow(t, overSSE, p.address(), token("amara"), -1)
	app.manage("do", `
from django.db import transaction
from django.contrib.auth.models import User
from grading.services import *
from grading.websocket_utils import *
import datetime, decimal
amara, cadet = User.objects.get(username="amara"), Cadet.objects.get()
give_merits(cadet.id, 3)
try:
    with transaction.atomic():
        give_merits(cadet.id, 100)
        raise ValueError
except ValueError:
    pass
broadcast_attendance_update(cadet.id, {"date": datetime.date(2026, 1, 15), "status": "late"})
broadcast_exam_score_update(cadet.id, {"exam": "Navigation", "score": decimal.Decimal("91.5")})
broadcast_notification(amara.id, {"title": "Inspection at 0700"})
assert broadcast_message([amara.id], {"text": "Bring your maps"}) > 0
broadcast_sync_event("parade", {"at": "0900"}, roles=["*"])
from grading import inline
inline.give_merits(Cadet.objects.get(), 2)`)
	staff.await(t, 6)
	user.await(t, 3) // who is let go is sent nothing more, late events neither
	app.manage("do", `
from django.contrib.auth.models import User
from grading.services import withdraw_approval
withdraw_approval(User.objects.get(username="amara"))`)
	want := []string{
		`old_and_unsent {}`,
		`grade_update {"cadet_id": 1, "merits": 3}`,
		`attendance_update {"cadet_id": 1, "date": "2026-01-15", "status": "late"}`,
		`exam_score_update {"cadet_id": 1, "exam": "Navigation", "score": "91.5"}`,
		`parade {"at": "0900"}`,
		`grade_update {"cadet_id": 1, "merits": 5}`,
	}
	if got := shortly(staff.got()); !slices.Equal(got, want) {
		t.Errorf("the staff was sent\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	want = []string{`notification {"title": "Inspection at 0700"}`, `message {"text": "Bring your maps"}`, `parade {"at": "0900"}`}
	eventually(t, "the user whose approval was withdrawn is let go", func() bool { return user.failed() != nil })
	if got := shortly(user.got()); !slices.Equal(got, want) {
		t.Errorf("the user was sent\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	// Back: the old task finds nothing that was sent already.
	p.exec(examples(t, djangoGuide, "4. The way there", "sql")[0])
	if left := app.manage("do", `
from grading.models import SyncEvent
print(SyncEvent.objects.filter(processed=False).count(), SyncEvent.objects.count())`); !regexp.MustCompile(`^0 \d+$`).MatchString(left) {
		t.Errorf("unprocessed rows, and rows: %s", left)
	}
}

func shortly(events []message) (lines []string) {
	for _, e := range events {
		lines = append(lines, e.Type+" "+string(e.Data))
	}
	return lines
}
