"""The protocol of Label Studio's ML backends, so that Label Studio can use fc7 like any other backend."""
