"""The catalogue, the model and the selector as a service with a page: `moonshelf serve DIR`."""
