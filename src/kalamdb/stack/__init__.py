"""A private PostgreSQL with the extension and a KalamDB server: built, started, watched and stopped.

``up`` is the door; nothing here prints. What goes wrong is a ``StackError`` with one fact and a hint.
"""
