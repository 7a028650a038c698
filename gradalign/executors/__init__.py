"""Work that is done elsewhere: by workers, each with a replica of the policy."""
