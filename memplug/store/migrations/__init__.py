"""The schema's versions, run by `store.schema`."""
