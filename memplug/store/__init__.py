"""Edits in a database: SQLite for one machine, PostgreSQL for many servers that share one memory.

Needs the extra ``store`` (SQLAlchemy, Alembic, psycopg), which is imported where a store is opened.
"""
