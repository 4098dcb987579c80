"""The PostgreSQL wire protocol: ``wire`` does no I/O, ``handshake`` logs a client in, ``session`` is its conversation
after that, ``connection`` and ``listener`` are asyncio."""
