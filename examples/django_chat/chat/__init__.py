"""A chat in rooms, for people who are logged in. ``make run-django`` serves it at http://127.0.0.1:8000/.

``sockets.py`` has all that is about WebSockets, ``urls.py`` says where they are, and ``settings.py`` has one line more
than without them. The rest is a plain Django project: pages, a model, Django's own accounts.

The server sends JSON objects that have a ``type``:

* ``message``, with its number as ``id``, the ``name`` of its author, and the ``text``. Whoever comes gets the last ones
  of the room, and a message may come twice, so pages go by the ``id``;
* ``online``, with the ``names`` of those who are in the room. It comes whenever they change.

A client sends texts. When somebody logs out, all WebSockets of that browser are closed with 4401.

Any number of workers are one chat: ``make run-django WORKERS=4``.
"""
