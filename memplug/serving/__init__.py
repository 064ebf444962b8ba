"""An HTTP server for one model and its plug: answers as the OpenAI API gives them, and edits.

`app.create_app` makes the application, `batching` runs what is asked for, `jobs` changes the edits beside it.
"""

try:
    import fastapi
    import prometheus_client
    import uvicorn
except ImportError as error:
    raise ImportError(
        f"memplug serve needs {error.name}; install its extra with pip install 'memplug[serve]'"
    ) from error

del fastapi, prometheus_client, uvicorn
