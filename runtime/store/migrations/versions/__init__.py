"""One file a revision, forward only: expand first, contract a release later."""
