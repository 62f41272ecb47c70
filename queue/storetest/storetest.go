// Package storetest is the contract of queue.Store and queue.Inspector as tests, which each store runs, and
// what tests of stores share: messages, a process that is killed while it puts and drains, and a drain that
// is measured.
//
// A test of what every store keeps belongs here, one of a single store beside it.
package storetest

import (
	"testing"

	"koji-relay/queue"
)

// Store is a store as serve uses it.
type Store interface {
	queue.Store
	queue.Inspector
}

// Opener opens an empty store for one test, which it may call more than once, and closes it after the test.
type Opener func(tb testing.TB, l queue.Limits) Store

// contract is what each store keeps.
var contract = []struct {
	name string
	test func(t *testing.T, open Opener)
}{
	{"Message comes back as it was put", messageComesBackAsItWasPut},
	{"Put keeps the order of the commit", putKeepsTheOrderOfTheCommit},
	{"Put is idempotent on message-id", putIsIdempotentOnMessageID},
	{"Concurrent puts of the same messages store them once", concurrentPutsOfTheSameMessagesStoreThemOnce},
	{"Message is gone only after forget", messageIsGoneOnlyAfterForget},
	{"Message set aside is passed over until due", messageSetAsideIsPassedOverUntilDue},
	{"Renew makes due what was set aside for its address", renewMakesDueWhatWasSetAsideForItsAddress},
	{"Outcome of publish decides where put stores", outcomeOfPublishDecidesWherePutStores},
	{"Batch keeps its limits", batchKeepsItsLimits},
	{"Unstorable message is a dead letter and its neighbours are queued",
		unstorableMessageIsADeadLetterAndItsNeighboursAreQueued},
	{"Large body is stored", largeBodyIsStored},
	{"Full queue refuses and takes again after drain", fullQueueRefusesAndTakesAgainAfterDrain},
	{"Second drain is refused until the first ends", secondDrainIsRefusedUntilTheFirstEnds},
	{"Ended context is an error that names the operation", endedContextIsAnErrorThatNamesTheOperation},
	{"Put says what it did", putSaysWhatItDid},
	{"Probe writes and leaves nothing", probeWritesAndLeavesNothing},
	{"Stats count the queue", statsCountTheQueue},
	{"List narrows and keeps order", listNarrowsAndKeepsOrder},
	{"Show gives body, props and reason", showGivesBodyPropsAndReason},
	{"Retry makes messages due now", retryMakesMessagesDueNow},
	{"Retry of all dead letters leaves what is no message", retryOfAllDeadLettersLeavesWhatIsNoMessage},
	{"Drop deletes", dropDeletes},
	{"Export and import move a queue between stores", exportAndImportMoveAQueueBetweenStores},
	{"Dead letters age out", deadLettersAgeOut},
	{"Old messages expire", oldMessagesExpire},
	{"Real messages come back to the byte", realMessagesComeBackToTheByte},
	{"Import names the line that it cannot read", importNamesTheLineThatItCannotRead},
}

// Run runs the contract on the store that open opens.
func Run(t *testing.T, open Opener) {
	t.Helper()
	for _, c := range contract {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, open)
		})
	}
}
