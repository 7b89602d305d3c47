"The HTTP service: a thin shell over `agri_cae.service.in_memory`, which does the work. `agri-cae serve` starts it."
