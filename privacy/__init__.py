"""What a cut gives away: leakage, attacks, defences. Pure torch."""
