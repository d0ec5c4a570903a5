"""Serves bundles over HTTP, in KServe's protocol: ``python -m runtime serve``. Needs the extra [serve]."""
