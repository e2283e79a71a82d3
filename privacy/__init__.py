"""What smashed data reveal: leakage measures, attacks, defences. Pure torch."""
