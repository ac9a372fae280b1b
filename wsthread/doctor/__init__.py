"""What is wrong with a deployment, and which line to change.

:mod:`.settings` judges the configuration of gunicorn, which :mod:`.gunicorn` reads; :mod:`.proxies` that of a proxy;
:mod:`.machine` the limits of the system; :mod:`.live` opens WebSockets, and :mod:`.answers` judges what comes instead
of a 101. Each of them returns findings, see :mod:`.findings`.
"""
