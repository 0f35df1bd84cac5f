"""Object stores: buckets of named byte strings, whatever holds them."""
