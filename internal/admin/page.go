package admin

import "net/http"

func (s *Server) page(w http.ResponseWriter, status *Status) { answer(w, http.StatusOK, status) }
