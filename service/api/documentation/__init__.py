"""The OpenAPI document's examples, and the page /docs, which is made from it."""
