"""What numba compiles. Only the process that compiles imports this room (`compiler`)."""
