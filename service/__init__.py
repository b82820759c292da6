"""HTTP: the REST API, the dashboard, the command line. Imports no torch."""
