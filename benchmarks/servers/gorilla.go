// gorilla/websocket on net/http. Argument: the port.
package main

import (
	"log"
	"net/http"
	"os"
	"sync"

	"github.com/gorilla/websocket"
)

// A subscriber; gorilla leaves it to the application that one goroutine writes at a time.
type subscriber struct {
	writing sync.Mutex
	conn    *websocket.Conn
}

func (s *subscriber) send(message *websocket.PreparedMessage) {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.conn.WritePreparedMessage(message) // Whoever has gone is noticed by its own goroutine.
}

var (
	upgrader    websocket.Upgrader
	mutex       sync.Mutex // Guards the subscribers.
	subscribers = make(map[*subscriber]struct{})
)

func echo(w http.ResponseWriter, r *http.Request) {
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer conn.Close()
	for {
		kind, message, err := conn.ReadMessage()
		if err != nil {
			return
		}
		if err := conn.WriteMessage(kind, message); err != nil {
			return
		}
	}
}

func fanout(w http.ResponseWriter, r *http.Request) {
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	self := &subscriber{conn: conn}
	mutex.Lock()
	subscribers[self] = struct{}{}
	mutex.Unlock()
	defer func() {
		mutex.Lock()
		delete(subscribers, self)
		mutex.Unlock()
		conn.Close()
	}()
	for {
		kind, message, err := conn.ReadMessage()
		if err != nil {
			return
		}
		prepared, err := websocket.NewPreparedMessage(kind, message)
		if err != nil {
			return
		}
		mutex.Lock()
		everyone := make([]*subscriber, 0, len(subscribers))
		for one := range subscribers {
			everyone = append(everyone, one)
		}
		mutex.Unlock()
		for _, one := range everyone {
			one.send(prepared)
		}
	}
}

func main() {
	http.HandleFunc("/echo", echo)
	http.HandleFunc("/fanout", fanout)
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}
