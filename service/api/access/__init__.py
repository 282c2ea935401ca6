"""Who may send a request: API keys, scopes, hosts and origins of web pages."""
