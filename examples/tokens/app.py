"""An answer that comes word by word. ``make run EXAMPLE=tokens`` serves it at http://127.0.0.1:8000/.

The answer comes from a generator, as those of language models do, and each word is sent when it is there. When the
client leaves in the middle, or presses Stop, the generator is closed. So nobody pays for words that nobody reads, and
the log shows it.

A page sends ``{"ask": "..."}``, and ``{"stop": true}`` while it is answered. The server sends ``{"token": "..."}`` for
each word, and ``{"done": "end"}`` or ``{"done": "stopped"}`` behind the last one.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Generator
from contextlib import closing

from flask import Flask, render_template

from wsthread import Connection, InvalidJSON
from wsthread.flask import WebSockets

MAX_QUESTION = 500  # Characters.
WORDS = 120
WORD_TIME = 0.12  # Seconds.
TEXT = """
A connection has a thread of its own . A thread that waits costs little . The server sends each word when it is there
. A word that nobody reads costs as much as any other . The client leaves when it likes . The handler learns within a
second that the client has left . A generator that is closed gives back what it holds . Each answer begins with a
question . A question that nobody asks needs no answer . When it has no answer the server says so . The model has read
this text and nothing else . It knows which word comes behind each other word . So it says what sounds right . What
sounds right is not always true . Each client that waits sees the words as they come . A page that shows the words as
they come feels fast .
""".split()

app = Flask(__name__)
ws = WebSockets(app)
followers = defaultdict(list)  # What the model has learned: the words that were seen behind each word.
for word, follower in zip(TEXT, TEXT[1:]):
    followers[word].append(follower)


def answer(question: str) -> Generator[str, None, None]:
    """Imitate a language model. With a real one ``finally`` would end the request."""
    word = "."
    written = 0
    try:
        while written < WORDS or word != ".":
            time.sleep(WORD_TIME)
            word = random.choice(followers[word])
            written += 1
            yield word
    finally:
        print(f"{question!r}: the model wrote {written} words", flush=True)


def is_stopped(conn: Connection) -> bool:
    """Tell whether a message waits; while a question is answered that is a Stop."""
    try:
        conn.receive(timeout=0)
    except TimeoutError:
        return False
    return True


@ws.route("/ws", max_message_size=8 * MAX_QUESTION)
def talk(conn: Connection) -> None:
    while conn.connected:
        try:
            message = conn.receive_json()
        except InvalidJSON:
            continue
        match message:
            case {"ask": str(question)}:
                conn.send_json({"done": reply(conn, question[:MAX_QUESTION])})


def reply(conn: Connection, question: str) -> str:
    """Send an answer; return how it ended. Raises ConnectionClosed when the client has left."""
    with closing(answer(question)) as tokens:  # However the loop ends, the generator ends too.
        for token in tokens:
            if is_stopped(conn):
                return "stopped"
            conn.send_json({"token": token})
    return "end"


@app.route("/")
def index() -> str:
    return render_template("index.html", max_question=MAX_QUESTION)
