"""Numbers with few bits: learned quantizers, the rewrite of a model, packed bytes. Pure torch."""
