"""Published models against cutjax: what nobody here wrote, traced, cut and compared."""
