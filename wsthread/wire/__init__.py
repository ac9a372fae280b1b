"""What goes over the wire (RFC 6455, RFC 7692): frames, messages, compression, the protocol, the handshake.

Pure: bytes in, values out. No socket, no thread, no clock, no log.
"""
