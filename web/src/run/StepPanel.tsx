import { Alert, Anchor, CloseButton, Group, Stack, Tabs, Text, Title } from '@mantine/core'
import { useQueries } from '@tanstack/react-query'
import { kfp, type TaskView } from '../api'
import { between, duration, headline, size } from '../format'
import { useNow } from '../live'
import { Fact } from '../Parts'
import { link, setQuery, usePlace } from '../router'
import { StateBadge, isActive } from '../State'
import { ArtifactCard } from './ArtifactCard'
import { Logs } from './Logs'
import { Values } from './Values'

interface StepPanelProps {
  run: string
  path: string
  /** Undefined while the run has not come to this step. */
  task?: TaskView
  onClose: () => void
}

/** One step: its state and why, what went in, what came out, what it printed. */
export function StepPanel({ run, path, task, onClose }: StepPanelProps) {
  const { query } = usePlace()
  const active = !!task && isActive(task.own_state)
  const now = useNow(active)
  const isStep = task?.kind === 'container' || task?.kind === 'importer'
  const wanted = query.get('panel') ?? 'overview'
  const tab = wanted === 'logs' && (!isStep || task.pods.length === 0) ? 'overview' : wanted
  return (
    <Stack className="surface" w={440} maw="60%" p="md" gap="sm" role="region" aria-label="Step" data-testid="panel" style={{ flex: 'none', minHeight: 0 }}>
      <Group justify="space-between" wrap="nowrap" align="flex-start">
        <Title order={2} fz={17} style={{ overflowWrap: 'anywhere' }}>{task?.display_name ?? path.split('/').at(-1)}</Title>
        <CloseButton aria-label="Close the step" onClick={onClose} />
      </Group>
      {task ? (
        <Tabs
          value={tab}
          onChange={(value) => setQuery({ panel: value === 'overview' ? undefined : (value ?? undefined) })}
          keepMounted={false}
          display="flex"
          style={{ flexDirection: 'column', flex: 1, minHeight: 0 }}
        >
          <Tabs.List>
            <Tabs.Tab value="overview">Overview</Tabs.Tab>
            <Tabs.Tab value="artifacts">Artifacts</Tabs.Tab>
            {isStep && task.pods.length > 0 && <Tabs.Tab value="logs">Logs</Tabs.Tab>}
          </Tabs.List>
          <Tabs.Panel value="overview" pt="md" style={{ overflow: 'auto', minHeight: 0 }}>
            <Overview task={task} time={between(task.start_time ?? task.created_at, task.end_time, now)} />
          </Tabs.Panel>
          <Tabs.Panel value="artifacts" pt="md" style={{ overflow: 'auto', minHeight: 0 }}>
            <Artifacts task={task} />
          </Tabs.Panel>
          <Tabs.Panel value="logs" pt="md" style={{ flex: 1, minHeight: 0, display: 'flex', flexDirection: 'column' }}>
            <Logs key={task.pods.length} run={run} task={task.task_id} pods={task.pods.length} />
          </Tabs.Panel>
        </Tabs>
      ) : (
        <Text size="sm" c="dimmed">The run has not come to this step. It starts when all that it needs has succeeded.</Text>
      )}
    </Stack>
  )
}

const CACHE_NOTE = /^Outputs of run ([0-9a-f-]{36}), task ([0-9a-f-]{36})\.$/

function Note({ task }: { task: TaskView }) {
  const cached = CACHE_NOTE.exec(task.note)
  if (cached) {
    return (
      <Alert color="grape" variant="light" py="xs" title="It did not have to run">
        <Text size="sm">The same step with the same inputs has run before: its outputs are those of <Anchor size="sm" href={link.run(cached[1]!)}>this run</Anchor>.</Text>
      </Alert>
    )
  }
  const color = task.own_state === 'OMITTED' ? 'yellow' : 'gray'
  return task.note ? <Alert color={color} variant="light" py="xs"><Text size="sm" className="wrap">{task.note}</Text></Alert> : null
}

function Overview({ task, time }: { task: TaskView; time: string }) {
  const message = task.error?.message
  const pods = task.pods
  return (
    <Stack gap="md">
      <Group gap="xs">
        <StateBadge state={task.own_state} />
        {task.start_time && <Text size="sm" c="dimmed">{time}</Text>}
        {pods.length > 1 && <Text size="sm" c="dimmed">{pods.length} attempts</Text>}
        {task.usage && (
          <Text size="sm" c="dimmed">{duration(1000 * (task.usage.cpuSeconds ?? 0))} of CPU, at most {size(task.usage.maxRssBytes ?? 0)} of memory</Text>
        )}
      </Group>
      {message && (
        <Alert color="red" variant="light" py="xs" title={headline(message).slice(0, 300)}>
          {message.trim() !== headline(message) && <pre className="mono wrap" style={{ margin: 0 }}>{message}</pre>}
        </Alert>
      )}
      <Note task={task} />
      <Fact name="Inputs"><Values values={task.input_parameters} empty="No parameters go in." /></Fact>
      <Fact name="Outputs"><Values values={task.output_parameters} empty="No parameters come out." /></Fact>
      {pods.length > 0 && <Fact name={pods.length > 1 ? 'Pods' : 'Pod'}>{pods.map((pod) => <div key={pod.name} className="mono">{pod.name}</div>)}</Fact>}
    </Stack>
  )
}

function ids(links: TaskView['inputs']): { name: string; id: string }[] {
  return Object.entries(links ?? {}).flatMap(([name, { artifact_ids }]) => artifact_ids.map((id) => ({ name, id })))
}

function Artifacts({ task }: { task: TaskView }) {
  const out = ids(task.outputs)
  const into = ids(task.inputs)
  if (out.length + into.length === 0) return <Text size="sm" c="dimmed">No artifacts go in or come out.</Text>
  return (
    <Stack gap="md">
      <ArtifactList title="Out" links={out} />
      <ArtifactList title="In" links={into} />
    </Stack>
  )
}

function ArtifactList({ title, links }: { title: string; links: { name: string; id: string }[] }) {
  const found = useQueries({
    queries: links.map(({ id }) => ({ queryKey: ['artifact', id], queryFn: () => kfp.artifact(id), staleTime: Infinity })),
  })
  if (links.length === 0) return null
  return (
    <Stack gap="xs">
      <Text size="xs" c="dimmed">{title}</Text>
      {links.map(({ name, id }, index) => {
        const artifact = found[index]?.data
        return artifact && <ArtifactCard key={id} name={name} artifact={artifact} compact />
      })}
    </Stack>
  )
}
