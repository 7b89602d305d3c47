"The HTTP service: a thin shell over `agri_cae.service.requests`, which does the work. `agri-cae serve` starts it."
