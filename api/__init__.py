"The HTTP service: a thin shell over `agri_cae.service`, which does the work. `agri-cae serve` starts it."
