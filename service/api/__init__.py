"""The HTTP API: routes, schemas, authentication, errors."""
