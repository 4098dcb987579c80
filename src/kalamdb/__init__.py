"""KalamDB: the server behind ``CREATE TABLE … USING kalamdb`` in PostgreSQL."""

__version__ = "0.1.0"
