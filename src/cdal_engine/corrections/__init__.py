"""Labels corrected by a person: in what order, kept how, and what is made of them."""
