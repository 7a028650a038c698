"""The policy: loading it, its log-probabilities, the objective."""
