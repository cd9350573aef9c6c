"""``shallop run`` and its relatives: pipelines from a terminal, over the same REST API as every client."""
