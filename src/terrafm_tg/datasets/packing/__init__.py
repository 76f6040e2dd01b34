"""The parts of packing: plan, one unit of work, what is held and what is damaged, the folder and the index."""
