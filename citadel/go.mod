module github.com/bauxite-mesh/bauxite/citadel

go 1.26.0
