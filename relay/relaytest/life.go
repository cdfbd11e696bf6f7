package relaytest

import (
	"errors"

	"github.com/syncrelay/syncrelay/relay"
)

// Life is the life of one relay's process: the sessions that it has, until it is
// killed.
type Life struct {
	w    *World
	hook func(step string) Fate
	dead bool
	died chan struct{}
	// stopped: no step of it goes on.
	stopped bool
	// crashAt is the step at which the server crashes, once, under the process.
	crashAt string
}

// ErrDead is what a session of a killed process gives, or of a crashed server.
var ErrDead = errors.New("the session is dead")

// CrashServerAt makes the server crash at the first such step of this process,
// which lives on and may connect again.
func (l *Life) CrashServerAt(step string) *Life {
	l.crashAt = step
	return l
}

// Fate is what becomes of a process at a step.
type Fate int

const (
	// GoesOn means that nothing happens to it.
	GoesOn Fate = iota
	// Dies means that it is killed.
	Dies
	// IsCutOff means that the server ends its sessions. It lives on and may
	// connect again.
	IsCutOff
	// IsDeposed means that it loses the ownership and nothing tells it so. Its
	// sessions answer until the next owner takes the slot; only the fence stops it.
	IsDeposed
	// IsStopped means that it stands still, as by SIGSTOP, until Continue. The
	// server ends its sessions meanwhile.
	IsStopped
)

// Live begins a life. The hook, if not nil, is called before and after each step
// of the relay's that the world can see, and says what becomes of the process. It
// must not call the world.
func (w *World) Live(hook func(step string) Fate) *Life {
	return &Life{w: w, hook: hook, died: make(chan struct{})}
}

// Kill ends the life's sessions.
func (l *Life) Kill() {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	l.kill()
}

func (l *Life) kill() {
	if l.dead {
		return
	}
	l.dead = true
	close(l.died)
	if l.w.owner == l {
		l.w.owner = nil
	}
	if l.w.slot != nil && l.w.slot.holder == l {
		l.w.slot.holder = nil
	}
	l.w.notify()
}

// depose takes the ownership. w.mu is held.
func (l *Life) depose() {
	if l.w.owner == l {
		l.w.owner = nil
		l.w.tenure++
	}
	l.w.notify()
}

// cutOff ends the sessions. w.mu is held.
func (l *Life) cutOff() {
	l.depose()
	if l.w.slot != nil && l.w.slot.holder == l {
		l.w.slot.holder = nil
	}
}

// Stopped reports whether the process stands still.
func (l *Life) Stopped() bool {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	return l.stopped
}

// Continue lets a process that was stopped go on where it is.
func (l *Life) Continue() {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	l.stopped = false
	l.w.notify()
}

// stand waits while the process is stopped. w.mu is held, and given up meanwhile.
func (l *Life) stand() {
	for l.stopped {
		changed := l.w.changed
		l.w.mu.Unlock()
		<-changed
		l.w.mu.Lock()
	}
}

// Died is closed when the process has been killed.
func (l *Life) Died() <-chan struct{} { return l.died }

// Dead reports whether the process has been killed.
func (l *Life) Dead() bool {
	select {
	case <-l.died:
		return true
	default:
		return false
	}
}

// Step is a step that the relay's client sees, such as the writing of an event.
func (l *Life) Step(step string) error {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	return l.step(step)
}

// step asks what becomes of the process now. w.mu is held.
func (l *Life) step(step string) error {
	l.stand()
	if !l.dead && l.hook != nil {
		switch l.hook(step) {
		case GoesOn:
		case Dies:
			l.kill()
		case IsCutOff:
			l.cutOff()
			return ErrDead
		case IsDeposed:
			l.depose()
		case IsStopped:
			l.stopped = true
			l.cutOff()
			l.stand()
		}
	}
	if l.dead {
		return ErrDead
	}
	if l.crashAt == step {
		l.crashAt = ""
		if l.w.slot != nil {
			l.w.slot.holder = nil
		}
		l.w.owner = nil
		l.w.crash()
		return ErrDead
	}
	return nil
}

// Source is the source as this process sees it.
func (l *Life) Source() relay.Source { return source{l.w, l} }

// Journal is the journal as this process sees it.
func (l *Life) Journal() relay.Journal { return journal{l.w, l} }
