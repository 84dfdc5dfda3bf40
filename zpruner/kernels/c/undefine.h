/* Room for the next instruction set. */

#undef ISA
#undef TARGET
#undef WEIGHTS
#undef SUMS
#undef LANES
#undef X_SIZE
#undef STEPS
#undef PER
#undef CHAINS
#undef TILE_ROWS
#undef SCALE
#undef STREAM
