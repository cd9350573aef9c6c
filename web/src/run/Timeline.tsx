import { Box, Group, Stack, Text, UnstyledButton } from '@mantine/core'
import type { TaskView } from '../api'
import { between, duration, instant } from '../format'
import { useNow } from '../live'
import { Empty } from '../Parts'
import { pick } from '../pick'
import { StateIcon, isActive, stateText } from '../State'

/** When each step ran: one bar a step, in the order of their starts. */
export function Timeline({ tasks, selected, onSelect }: { tasks: TaskView[]; selected?: string; onSelect: (path: string) => void }) {
  const steps = tasks.filter((task) => task.pods.length > 0 || task.kind === 'container')
  const ran = steps.filter((task) => instant(task.start_time) !== undefined)
  const now = useNow(ran.some((task) => isActive(task.own_state)), 500)
  if (ran.length === 0) return <Empty title="No step has run">Steps from the cache and skipped steps take no time.</Empty>
  const begin = ran.reduce((least, task) => Math.min(least, instant(task.start_time)!), Infinity)
  const end = ran.reduce((most, task) => Math.max(most, instant(task.end_time) ?? now), begin + 1)
  const sorted = pick(ran, (task) => task.own_state).sort((a, b) => instant(a.start_time)! - instant(b.start_time)!)
  return (
    <Stack className="surface" p="md" gap={4}>
      <Group justify="space-between" pl={230}><Text size="xs" c="dimmed">0</Text><Text size="xs" c="dimmed">{duration(end - begin)}</Text></Group>
      {sorted.length < ran.length && <Text size="xs" c="dimmed">{sorted.length} of {ran.length.toLocaleString()} steps: those that failed or run come first.</Text>}
      {sorted.map((task) => {
        const from = instant(task.start_time)!
        const to = instant(task.end_time) ?? now
        return (
          <UnstyledButton key={task.task_id} onClick={() => onSelect(task.path)} aria-label={`${task.display_name}: ${stateText(task.own_state)}`} style={{ borderRadius: 6, background: task.path === selected ? 'var(--mantine-primary-color-light)' : undefined }}>
            <Group gap="sm" wrap="nowrap" py={2} px={4}>
              <Group gap={8} w={214} wrap="nowrap"><StateIcon state={task.own_state} size={15} /><Text size="sm" truncate title={task.path}>{label(task)}</Text></Group>
              <Box className="gantt" data-state={task.own_state} flex={1}>
                <i style={{ left: `min(${((from - begin) / (end - begin)) * 100}%, 100% - 3px)`, width: `${((to - from) / (end - begin)) * 100}%` }} />
              </Box>
              <Text size="xs" c="dimmed" w={64} ta="right" style={{ fontVariantNumeric: 'tabular-nums' }}>{between(task.start_time, task.end_time, now)}</Text>
            </Group>
          </UnstyledButton>
        )
      })}
    </Stack>
  )
}

/** The name with the iterations it is in: `train [1]`. */
function label(task: TaskView): string {
  const iterations = [...task.path.matchAll(/\[(\d+)\]/g)].map((match) => `[${match[1]}]`).join('')
  return iterations && !task.display_name.endsWith(iterations) ? `${task.display_name} ${iterations}` : task.display_name
}
