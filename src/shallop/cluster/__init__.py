"""The second home: the controllers against any Kubernetes cluster, and what is installed there."""
