// Sessions by Go's pq, as those of sessions.py: sessions URL FILE
//
// A statement with parameters is parsed, and bound when the server has answered, as is the driver's default.
package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/lib/pq"
)

const (
	sessions = 4
	pause    = 80 * time.Millisecond
	state    = "SELECT current_setting('work_mem') || ' ' || current_setting('app.who')"
	write    = "INSERT INTO turns VALUES ('pq', $1, $2, $3)"
	rows     = "SELECT count(*) FROM turns WHERE (driver, session, turn) = ('pq', $1, $2)"
)

var (
	ctx  = context.Background()
	lock sync.Mutex
	seen = struct {
		Begun    int            `json:"begun"`
		Alive    int            `json:"alive"`
		Turns    int            `json:"turns"`
		Written  int            `json:"written"`
		Errors   map[string]int `json:"errors"`
		InBlocks map[string]int `json:"in_blocks"`
	}{Errors: map[string]int{}, InBlocks: map[string]int{}}
)

func add(count *int) {
	lock.Lock()
	defer lock.Unlock()
	*count++
}

func failed(where map[string]int, err error) {
	lock.Lock()
	defer lock.Unlock()
	var told *pq.Error
	if errors.As(err, &told) {
		where[string(told.Code)]++
	} else {
		where[err.Error()]++
	}
}

// Of what a statement answers, when it is not as it should be; that is no error of the driver's.
type surprise struct{ error }

func expect(expected, found interface{}) error {
	if expected != found {
		return surprise{fmt.Errorf("%v was expected, and %v was found", expected, found)}
	}
	return nil
}

func alone(conn *sql.Conn, held *sql.Stmt, who string, number, turn int) error {
	var text string
	if err := held.QueryRowContext(ctx).Scan(&text); err != nil {
		return err
	}
	if err := expect("7MB "+who, text); err != nil {
		return err
	}
	var answer int
	if err := conn.QueryRowContext(ctx, "SELECT $1::int + 1", number).Scan(&answer); err != nil {
		return err
	}
	if err := expect(number+1, answer); err != nil {
		return err
	}
	_, err := conn.ExecContext(ctx, write, number, turn, "alone")
	return err
}

func inBlock(conn *sql.Conn, number, turn int) error {
	block, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	// After a Commit it does nothing.
	defer block.Rollback()
	if _, err = block.ExecContext(ctx, write, number, turn, "in a block"); err != nil {
		return err
	}
	var count int
	if err = block.QueryRowContext(ctx, rows, number, turn).Scan(&count); err != nil {
		return err
	}
	if err = expect(2, count); err != nil {
		return err
	}
	return block.Commit()
}

func session(db *sql.DB, stop string, number int) error {
	who := fmt.Sprintf("pq%d", number)
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	if _, err := conn.ExecContext(ctx, "SET work_mem = '7MB'"); err != nil {
		return err
	}
	if _, err := conn.ExecContext(ctx, "SET app.who = '"+who+"'"); err != nil {
		return err
	}
	held, err := conn.PrepareContext(ctx, state)
	if err != nil {
		return err
	}
	add(&seen.Begun)
	for turn := 1; ; turn++ {
		if _, err := os.Stat(stop); err == nil {
			break
		}
		time.Sleep(pause)
		where, err := seen.Errors, alone(conn, held, who, number, turn)
		if err == nil {
			add(&seen.Written)
			where, err = seen.InBlocks, inBlock(conn, number, turn)
		}
		var wrong surprise
		if errors.As(err, &wrong) {
			return err
		}
		if err != nil {
			failed(where, err)
			// Nothing else says that it has ended.
			if conn.PingContext(ctx) != nil {
				return nil
			}
			continue
		}
		add(&seen.Written)
		add(&seen.Turns)
	}
	add(&seen.Alive)
	return nil
}

func main() {
	db, err := sql.Open("postgres", os.Args[1])
	if err != nil {
		panic(err)
	}
	var all sync.WaitGroup
	code := 0
	for number := 0; number < sessions; number++ {
		all.Add(1)
		go func(number int) {
			defer all.Done()
			if err := session(db, os.Args[2], number); err != nil {
				fmt.Fprintln(os.Stderr, err)
				lock.Lock()
				code = 1
				lock.Unlock()
			}
		}(number)
	}
	all.Wait()
	line, _ := json.Marshal(map[string]interface{}{"pq": seen})
	fmt.Println(string(line))
	os.Exit(code)
}
