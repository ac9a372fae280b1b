"""gunicorn's configuration behind a proxy on the same host: gunicorn -c gunicorn.conf.py app:app."""

worker_class = "gthread"
threads = 16                # For HTTP; WebSockets need none of them.
workers = 1                 # One process holds thousands of WebSockets.
bind = "127.0.0.1:8000"
timeout = 30
graceful_timeout = 25       # Not more than timeout. WebSockets get Close 1001 at once.
max_requests = 0            # Each restart of a worker closes its WebSockets.
