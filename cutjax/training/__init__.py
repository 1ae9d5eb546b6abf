"""The parts of `cutjax.fit`: a step, what the loop counts, where its arrays lie."""
