package drain

// What a stopping drain allows itself, for the tests.
const (
	FinishTime = finishTime
	SaveTime   = saveTime
)
