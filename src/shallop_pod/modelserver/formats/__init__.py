"""One module per library that loads models: ``load(name, path, options)`` returns a ``Model``."""
