"""``python -m memplug``."""

from .cli import app

if __name__ == "__main__":
    app()
